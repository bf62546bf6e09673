"""Rules of the backward pass: a network read as a program, and how DeepLIFT, LRP and guided gradients pass it."""
