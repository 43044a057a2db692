"""`llmpipe top`: a live view of a proxy in a terminal, and a snapshot as plain text.

`source` asks the admin endpoint. `figures` makes text of numbers, `tables` rows of what was answered, `timeline` lines of one exchange,
`summary` the head of the page; none of them knows a terminal. `plain` prints them. `view` and `app` show them with Textual, which
nothing else imports: it is an extra.
"""
