"""Semi-supervised anomaly detection, whole: tables, networks, training, report."""
