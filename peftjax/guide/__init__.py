"""Which method, with the evidence: rules and published figures."""
