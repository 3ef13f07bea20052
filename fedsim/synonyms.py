"""Names that users of other libraries type, for the hints of errors.

They are from Flower, FedJAX, FedLab, fluke, NIID-Bench, Opacus, PyTorch, Keras and scikit-learn, and from papers.
"""

from __future__ import annotations

import re

#: Name in fedsim -> other names for it, as `normalised` writes them. A hint is given only where the name is allowed.
SYNONYMS: dict[str, str] = {
    # settings of an experiment
    "rounds": "numrounds nrounds commround commrounds communicationrounds globalrounds globalepochs numserverrounds t",
    "fraction_train": "c fractionfit fraction frac clientfraction samplefraction samplerate participation "
    "participationrate eligibleperc sample clientsperround numclientsperround",
    "fraction_evaluate": "fractioneval evalfraction",
    "test_fraction": "testsize valsplit validationsplit testsplit",
    "min_clients": "minfitclients mintrainclients",
    "seed": "randomstate randomseed initseed manualseed rng",
    "hidden": "hiddenlayers hiddenlayersizes hiddenunits hiddensize hiddensizes hiddendim layers units net",
    "activation": "nonlinearity activationfunction act",
    "loss": "criterion lossfn lossfunction objective",
    "dtype": "precision",
    "dataset": "data datasetname",
    "data_dir": "datadir root datapath dataroot",
    "split": "partition partitioner partitioning distribution datasplit noniid niid iid heterogeneity alphapartition",
    "client": "algorithm alg algo method clientstrategy trainer optimizer optimiser clientoptimizer",
    "server": "strategy aggregator aggregation aggregationrule serverstrategy serveroptimizer defence defense",
    "transforms": "compression compressor quantization",
    "privacy": "dp differentialprivacy",
    "secure_aggregation": "secagg secaggplus secure",
    "attack": "byzantine adversary poisoning",
    "early_stopping": "earlystop",
    "sensitive": "sensitivefeatures sensitivefeature sensitiveattribute protected protectedattribute",
    "kernel": "backend jit",
    # arguments of run and compare
    "workers": "njobs numworkers threads nthreads numthreads cores",
    "directory": "out outputdir outdir logdir savedir folder path",
    "engine": "backend runner",
    "callbacks": "callback",
    "seeds": "seed nseeds numseeds repeats repetitions runs trials",
    "baselines": "baseline",
    # arguments of client strategies
    "lr": "learningrate learningrateinit eta stepsize clientlr locallr clientlearningrate",
    "epochs": "e localepochs localep numepochs nepochs numlocalepochs maxiter",
    "batch_size": "b batch bs localbs minibatch minibatchsize trainbs localbatchsize",
    "steps": "localsteps numsteps maxsteps localiterations",
    "momentum": "rho mom beta",
    "weight_decay": "wd l2 reg l2reg regularization",
    "lr_decay": "gamma decay lrscheduler",
    "proximal_mu": "mu proxmu muprox proximalterm lam lambda",
    "lam": "lambda lmbda mu reg",
    "mu": "proximalmu lambda lam",
    "max_norm": "clip clipnorm gradclip maxgradnorm",
    # arguments of splits
    "num_clients": "clients nclients numpartitions nparties numparties k nodes numnodes numsupernodes numusers nusers "
    "clientnum",
    "alpha": "beta concentration dirichletalpha",
    "per_client": "shardsperclient numshardsperpartition shards numshards",
    "k": "labelsperclient numclassesperpartition classesperclient nclasses",
    "column": "partitionby by",
    # arguments of server strategies
    "eta": "lr learningrate serverlr serverlearningrate etag stepsize",
    "server_learning_rate": "lr learningrate eta serverlr",
    "server_momentum": "momentum beta",
    "beta_1": "beta1 b1 betas momentum",
    "beta_2": "beta2 b2",
    "tau": "eps epsilon",
    "beta": "trim trimratio fraction",
    "num_malicious_nodes": "f numbyzantine nummalicious numattackers nbyzantine nummaliciousclients",
    "num_nodes_to_select": "m numclientstokeep tokeep k",
    "min_train_nodes": "minfitclients mintrainclients",
    "min_evaluate_nodes": "minevaluateclients minevalclients",
    "min_available_nodes": "minavailableclients",
    # arguments of attacks, transforms and differential privacy
    "fraction": "maliciousfraction attackerratio ratio frac k rate",
    "deviation": "std sigma stddev scale",
    "scale": "strength factor",
    "noise_multiplier": "sigma noise noisescale z",
    "clip": "maxgradnorm clippingnorm l2normclip clipnorm maxnorm clippingthreshold",
    "norm": "clip clipnorm maxnorm clippingnorm",
    "epsilon": "eps targetepsilon",
    "delta": "targetdelta",
    # classes
    "SGD": "fedavg localsgd adam adamw rmsprop fedavgm fedadam",
    "LocalOnly": "local standalone individual separate",
    "FineTune": "finetuning fedavgft",
    "FedAvg": "mean average weightedaverage sgd fedsgd",
    "FedAdam": "adam fedopt",
    "FedMedian": "median coordinatewisemedian comed",
    "FedTrimmedAvg": "trimmedmean",
    "RFA": "geometricmedian geomed weiszfeld",
    "SpectralFilter": "dnc divideandconquer",
    "CenteredClipping": "cclip centeredclip",
    "QFedAvg": "qffl",
    "AgnosticFL": "afl",
    "IID": "homo homogeneous iidpartitioner random uniform",
    "Dirichlet": "noniid niid hetero heterogeneous dir lda dirichletpartitioner noniidlabeldir heterodir labelskew",
    "Shards": "pathological shardpartitioner pathologicalpartitioner",
    "LabelsPerClient": "noniidlabel labelquantity classpartitioner",
    "Natural": "naturalidpartitioner naturalid real",
    "DirichletSizes": "iiddiffquantity quantityskew",
    "TopK": "sparsification sparsify topksparsification",
    "Int8": "quantization quantize qsgd int",
    "Float16": "half fp16 bfloat16",
    "RandomMask": "randomk randk",
    "LabelFlip": "labelflipping flip",
    "SignFlip": "signflipping reversegradient",
    "GaussianAttack": "gaussian noise gaussiannoise",
    "LittleIsEnough": "alie lie",
    "InnerProduct": "ipm",
    "FreeRider": "freeriding",
    "Backdoor": "badnets trigger",
    "CentralDP": "dpfedavg dpftrl userleveldp clientleveldp dp gaussian",
    "ExampleDP": "dpsgd opacus",
    "LocalDP": "ldp",
    "SecureAggregation": "secagg secaggplus",
    # values
    "cross_entropy": "crossentropyloss categoricalcrossentropy sparsecategoricalcrossentropy nll nllloss logloss ce",
    "binary_cross_entropy": "bce bceloss bcewithlogitsloss",
    "mse": "mseloss meansquarederror squarederror l2",
    "sigmoid": "logistic",
    "float32": "float single fp32 torchfloat32",
    "float64": "double fp64 torchfloat64",
    "compiled": "numba fast",
    "in-process": "local threads thread threading simulation",
    "exclude": "skip ignore drop continue",
    "fashion_mnist": "fmnist",
    "adult": "census income",
    "hub": "huggingface cifar cifar10 cifar100 femnist emnist svhn",
    "table": "csv dataframe",
    "test_accuracy": "accuracy acc valaccuracy valacc testacc",
    "test_loss": "loss valloss",
    "centralised": "central pooled",
    "data-parallel": "distributed",
    # commands
    "run": "train simulate start fit",
    "compare": "study sweep benchmark",
    "strategies": "list algorithms",
}


def normalised(name: str) -> str:
    """Return a name in lower case, without underscores, dashes and other punctuation."""
    return re.sub(r"[\W_]", "", name).lower()


def is_synonym(word: str, name: str) -> bool:
    """Return whether a word, in any spelling, is a name or another word for it."""
    found = normalised(word)
    return found == normalised(name) or found in SYNONYMS.get(name, "").split()
