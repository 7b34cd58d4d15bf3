"""Models, all but how they are trained: which one a name means, prompts and pictures as it takes them, the tiny ones.

A name or folder comes in (`find`); a state goes out as token ids and pixel values (`chat`, `pixels`).
May import envs and the modules of g1_ray's ground floor (types, seeds, files, tables, grammar, config_text).
"""
