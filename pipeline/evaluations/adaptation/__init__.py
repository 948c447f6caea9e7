"""The members, the seeds and the tables of the evaluation `adaptation`."""
