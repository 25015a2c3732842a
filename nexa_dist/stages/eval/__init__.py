"""The stage eval: a model's answers scored by a judge, its perplexity, its speed, standard tasks."""
