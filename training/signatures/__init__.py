"""Make signatures from models: projection residuals, and signatures tuned alone."""
