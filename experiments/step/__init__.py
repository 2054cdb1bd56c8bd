"""One step of training and of evaluation: methods, objective, optimizer, execution on devices."""
