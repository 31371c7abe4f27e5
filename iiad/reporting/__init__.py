"""Tables, pictures and pages of results. They receive results and compute none."""
