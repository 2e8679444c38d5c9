"""A training on files of one's own: the three threads at full scale, their estimates, reports and commands."""
