"""The algebra: data, worlds, methods, parts, checkpoints. Everything else imports from here.

Its public names are those of `homeostat` itself.
"""
