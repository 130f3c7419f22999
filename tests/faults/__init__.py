"""Training processes under faults: real ones, killed, starved, lied to and damaged, and what becomes of their runs.

`python scripts/faults.py` tries them all, and the tests here do so in a short form. The harness lies beside its tests,
for most of it is what tests are made of; the script counts and prints.
"""
