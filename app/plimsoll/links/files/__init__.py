"""Rows in files: JSON lines and Parquet, read in bounded memory and written in parts."""
