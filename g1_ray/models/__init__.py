"""Models, all but their training: a name comes in (`find`), a state goes out as ids and pixels (`chat`, `pixels`).

May import envs and the ground floor (types, seeds, files, logs, tables, grammar, config_text)."""
