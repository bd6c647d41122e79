"""Turn probabilities into figures and plots for people."""
