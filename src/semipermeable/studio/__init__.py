"""`spm studio`: a page on which a concept is erased, looked at, checked and carried away.

Everything the page shows lives on the side of the server, in one work folder; the browser holds nothing. A reload, a
second window, or a restart of the program finds all of it again.

    workfolder   where files lie; no name from a browser leads out of it
    jobs         one thread that does the long work; every piece of it can be stopped
    models       the models that may be chosen, and the one that is open
    shelf        membranes with their switches and strengths
    erasing      training runs: figures, previews, stop and resume
    comparing    the same seed before and after; why each gate opened; what changed elsewhere
    album        the pictures that were drawn last
    evaluating   a quick benchmark and its report
    carrying     membranes as files of other programs
    desk         all of the above, as the page sees it
    binding, making_tabs, checking_tabs, fragments, page    the page itself, in gradio
    app, running            the ASGI application around it
"""
