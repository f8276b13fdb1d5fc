"""Tables, figures and one self-contained page from the files of a run; knows results, not models."""
