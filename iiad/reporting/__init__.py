"""What people see: progress while something runs, and tables of what came out."""
