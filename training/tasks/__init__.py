"""What a patched model must keep, by task: the loss that a signature is trained with, and the scores of a build."""
