"""What was sampled, made visible: figures of a response's tokens, curves and maps, and a page of a whole rollout.

Pure functions: `responses` says what is known of each token, `figures` draws it, `maps` reads the few attention maps
that are drawn, and `page` packs it all into one HTML file.
"""
