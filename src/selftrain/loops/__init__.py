"""Self-training loops: ReST-EM, STaR, RFT and V-STaR over one store of samples."""
