"""Backward-pass rules of DeepLIFT, LRP and guided gradients, applied to a network read as a list of steps.

Files:
  program                  a function as a flat list of steps
  patterns, affine, relus  recognise linear and elementwise steps, affine layers, and ReLUs
  softmaxes, attentions    recognise softmaxes, and those of an attention
  deeplift, lrp, guided    the rules of each method
  biases                   the biases of all operations, for FullGrad
"""
