"""Tables, plots, the HTML report and the README's marked blocks, all of them made from rows alone."""
