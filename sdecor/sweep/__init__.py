"""Sweeps: many runs of train.py and evaluate.py, resumable, and the tables and figures of what they found.

    python -m sdecor.sweep --config=configs/sweeps/ablation.py --workdir=DIR
    python -m sdecor.sweep --report DIR

`plan` is what a sweep is and `source` where it comes from; `check` and `dry` look for mistakes before anything starts;
`job` is one run on its way, with `claim` and `record` in its folder; `local` and `slurm` start jobs; `status` says what
is left. Of what was found, `collect` makes rows, `inference` and `comparisons` intervals and tests, `tables` and
`figures` what is shown, `summing_up` all of it.
"""
