"""What was sampled, made visible: figures of a response's tokens, curves and maps, and a page of a whole rollout.

Pure functions: `responses` says what is known of each token, `tokens` and `figures` draw it, `maps` reads the few
attention maps that are drawn, and `page` packs it all into one HTML file.
"""
