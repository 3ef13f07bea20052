"""What people see: tables, pictures and files."""
