"""The optimizer Muon for kdcore."""
