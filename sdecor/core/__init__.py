"""The base of all folders. No file here imports another folder of sdecor.

Files:
  parallel            devices and processes: meshes, placement, pmap
  rng                 random keys per example
  arrays, classes     precision, sorting and blur; class indices
  barrier             a barrier in a program for a CPU
  chunks              many evaluations of a function in bounded memory
  jaxpr               interpretation of a function's jaxpr
  checks              validation of plain values
  files, locks        whole-file writes, JSON, digests, differences of configs; lock files
  threads, interrupt  reading ahead in threads; signals as a flag
  commands, launch    command lines: exit statuses, errors, progress bar; the start of train.py and evaluate.py
"""
