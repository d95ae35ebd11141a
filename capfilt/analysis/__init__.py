"""What is done with a finished run: SQL, history of a row, comparison, verification, HTML report."""
