"""Registration: classical, learned and group-wise, with the quality of each result measured."""
