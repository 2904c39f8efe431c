"""The restorers: one file for each network, its blocks included."""
