"""Sweeps: many runs by one command, in this process, in processes of their own or on a SLURM cluster."""
