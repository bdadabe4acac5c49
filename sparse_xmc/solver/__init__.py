"""Heads on sparse terms without gradients: centroids in closed form, shortlists, one SVM a label (CPU)."""
