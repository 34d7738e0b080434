def draw(out, rows):
    pass
