"""What commands that make data sets share, and the commands of published logs."""
