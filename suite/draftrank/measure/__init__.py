"""Sessions and their records, statistics, fidelity, cost model and gates."""
