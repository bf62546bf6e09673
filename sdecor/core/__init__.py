"""The base of all folders. No file here imports another folder of sdecor.

Files:
  parallel            devices and processes: meshes, placement, pmap
  rng                 random keys per example
  arrays, classes     precision, sorting and blur; class indices
  barrier             a barrier in a program for a CPU
  chunks              many evaluations of a function in bounded memory
  jaxpr               interpretation of a function's jaxpr
  checks              validation of plain values
  compile_cache       the user's cache of compiled programs
  allocator           freed memory that a CPU's programs use again
  files               whole-file writes, JSON, digests, differences of configs
  safetensors         reading of safetensors files
  locks, leases       lock files; locks of folders that one job writes, also on object stores
  threads, interrupt  reading ahead in threads; signals as a flag
  native, children    signal handlers of libraries; child processes that end with their parent
  watchdog            the end of a program that makes no progress
  commands, launch    command lines: exit statuses, errors, progress bar; the start of train.py and evaluate.py
"""
