"""Training: from a config to a trained run.

Files:
  specification        the loss of SaliencyDecor as one function, for any training loop
  build                the objects of a run, from its config
  terms, objective     the terms of the loss by name; their weighted sum and its gradient
  steps, state         the training step and the validation step; the training state and optimizers
  calls                programs of one step or several, and which steps a call takes
  batches              training batches on the devices, and validation over a split
  device_split         a training split that lies on the devices
  members, replicas    one run or several in one program; the numbers in which these may differ
  run_folder           the folder of a run and its config.json
  checkpoint, record   checkpoints; what is stored of one beside its arrays
  health, pace         losses that are not finite, and what follows; when a checkpoint is due by time
  logbook, wandb_rows  metrics.jsonl and TensorBoard; Weights & Biases
  clock, profiling     times of steps and goodput; traces of chosen steps
  compiled, preview    what a compiled step takes; the same before a job starts
"""
