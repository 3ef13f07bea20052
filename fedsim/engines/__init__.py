"""Where clients run, all behind Flower's own interfaces."""
