"""What happened and why: pictures, curves and tables."""
