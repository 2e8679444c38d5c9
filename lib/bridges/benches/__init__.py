"""What an experiment stands on: hosts and exams for each seed, arms trained on them, and the study they end in."""
