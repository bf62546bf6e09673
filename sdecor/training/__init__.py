"""Training: from a config to a trained run.

Files:
  specification        the loss of SaliencyDecor as one function, for any training loop
  build                the objects of a run, from its config
  terms, objective     the terms of the loss by name; their weighted sum and its gradient
  steps, state         the training step and the validation step; the training state and optimizers
  batches              training batches on the devices, and validation over a split
  members, replicas    one run or several in one program; the numbers in which these may differ
  run_folder           the folder of a run and its config.json
  checkpoint, logbook  checkpoints; metrics.jsonl and TensorBoard
"""
