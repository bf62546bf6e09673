"""Sweeps: train and evaluate cells × seeds, resume what was stopped, and report the results.

    python -m sdecor.sweep --config=configs/sweeps/ablation.py --workdir=DIR
    python -m sdecor.sweep --report DIR

A *cell* is a named set of config overrides. A *trial* is one cell with one seed: one start of train.py and evaluate.py,
whose folder is a run's folder.

Files, in the order in which a sweep uses them:
  __main__                 the command line
  plan                     the sweep as data; read from its file, kept in its folder
  check, dry               validate every cell before anything starts
  commands, trial_folder   the command lines of a trial; its state and its lock
  job, local, slurm        start the processes of a trial, on this machine or on a cluster
  collect                  read the results of all trials, and compare cells
  tables, figures, report  the report of the sweep
"""
