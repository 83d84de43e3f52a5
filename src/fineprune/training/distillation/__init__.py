"""Distillation: a teacher, its answers, and the loss of a student that differs from them."""
