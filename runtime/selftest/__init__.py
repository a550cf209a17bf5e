"""Does this bundle, on this machine, give the logits that were stored when it was made?

``laws`` says what must hold, ``opening`` what is checked when a bundle is opened, ``stamps`` what the user
cache remembers.
"""
