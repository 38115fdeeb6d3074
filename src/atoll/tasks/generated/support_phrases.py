"""The phrases that messages of the task `support` are made of.

Each queue has troubles, with `{}` where one of its subjects goes; a trouble decides the queue, whatever its subject.
Openings and closings say nothing about the queue.
"""

from __future__ import annotations

_GOODS = ("kettle", "desk lamp", "rain jacket", "backpack", "headset", "yoga mat", "wall clock", "keyboard",
          "bathrobe", "coffee grinder", "tent", "phone case", "bookshelf", "toaster", "scarf", "drill")  # fmt: skip
_ACCESS_SUBJECTS = ("on my phone", "on my laptop", "in the app", "on the website", "at work", "on my tablet",
                    "in the browser", "since Sunday", "since the update", "from abroad", "with the new phone",
                    "with my old email", "after the holidays", "this morning", "for two days", "anywhere")  # fmt: skip
_BILLING_SUBJECTS = ("last month", "in March", "this week", "on Friday", "for my last purchase", "for the subscription",
                     "for May", "for the trial", "yesterday", "for order 4471", "for order 8820", "for the gift card",
                     "in June", "for the annual plan", "for April", "on my last statement")  # fmt: skip
_PRIVACY_SUBJECTS = ("under the GDPR", "as the law allows", "before Monday", "as soon as possible", "from all systems",
                     "for good", "this week", "once more", "in writing", "from today on", "after closing my account",
                     "within 30 days", "for my family too", "from your partners", "without delay",
                     "as I asked in May")  # fmt: skip

PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "access": (_ACCESS_SUBJECTS, (
        "I cannot sign in {}.",
        "My password is refused {}.",
        "The login code never arrives {}.",
        "I am locked out of my account {}.",
        "The reset link says it is expired {}.",
        "It keeps asking for a second factor I do not get {}.",
        "Signing in ends on a blank page {}.",
        "It says my user name is unknown {}.",
        "I forgot my password and cannot change it {}.",
        "Your site logs me out again and again {}.",
        "The captcha will not let me into my profile {}.",
        "I can no longer get into my account {}.",
    )),
    "billing": (_BILLING_SUBJECTS, (
        "I was charged twice {}.",
        "The invoice shows the wrong amount {}.",
        "My card was declined although it is valid {}.",
        "I need an invoice with my company's name {}.",
        "You took more money than agreed {}.",
        "There is a fee that I do not understand {}.",
        "The discount was not taken off {}.",
        "Please send me a receipt {}.",
        "The VAT number is missing on the bill {}.",
        "A payment left my bank but you show it as open {}.",
        "I want to pay by transfer instead of card {}.",
        "My voucher was not counted {}.",
    )),
    "delivery": (_GOODS, (
        "My {} has not arrived yet.",
        "Tracking for the {} has not moved for days.",
        "The courier left the {} with a stranger.",
        "The {} was sent to my old address by the courier.",
        "When will the {} be here?",
        "The driver never rang and took the {} away again.",
        "It says delivered, but there is no {} at my door.",
        "The parcel with the {} is stuck in customs.",
        "The {} was due on Monday and I am still waiting.",
        "Can the courier bring the {} in the evening?",
        "The pick-up shop cannot find my {}.",
        "The shipment with my {} seems lost on its way.",
    )),
    "defect": (_GOODS, (
        "My {} broke after one week.",
        "The {} came with a crack in it.",
        "A part of the {} is loose and rattles.",
        "The {} stopped working overnight.",
        "There is a hole in the {}.",
        "The {} smells burnt when I use it.",
        "A screw is missing and the {} falls apart.",
        "The {} is faulty, can you repair it?",
        "My {} has a scratch that was there from the start.",
        "The colour of the {} comes off on my hands.",
        "The {} bends as soon as one touches it.",
        "Is a broken {} covered by the warranty?",
    )),
    "orders": (_GOODS, (
        "Please add a second {} to my order.",
        "I want to cancel the {} before it ships.",
        "I ordered the wrong {}, can you still change it?",
        "Is the {} in stock again soon?",
        "Did my order for the {} go through?",
        "I would like to order twenty pieces of the {}.",
        "Please change the size of the {} I just ordered.",
        "I never got a confirmation that I ordered the {}.",
        "Can I reserve a {} until Friday?",
        "I clicked twice and ordered the {} two times, drop one.",
        "Can I still choose another colour before you pack the {}?",
        "The shop will not let me put the {} in the basket.",
    )),
    "privacy": (_PRIVACY_SUBJECTS, (
        "Please delete all my personal data {}.",
        "Stop sending me marketing emails {}.",
        "I want a copy of the data you hold about me {}.",
        "Take my phone number out of your records {}.",
        "Who did you share my address with? Tell me {}.",
        "I withdraw my consent to tracking {}.",
        "Remove my photo from your reviews {}.",
        "Correct my date of birth in your files {}.",
        "Do not use my purchases for advertising {}.",
        "Take me off the newsletter {}.",
        "Tell me how long you keep my data {}.",
        "Erase my search history {}.",
    )),
    "returns": (_GOODS, (
        "I would like to send the {} back, it does not suit me.",
        "How do I return the {}?",
        "The {} is too big, can I swap it for a smaller one?",
        "Please send me a return label for the {}.",
        "I sent the {} back two weeks ago and got no refund.",
        "I changed my mind about the {} and want my money back.",
        "The {} was a present and I already own one, can I exchange it?",
        "Until when can I bring back the {}?",
        "I would rather have store credit for the {} I sent in.",
        "Has the {} that I returned reached you?",
        "You sent a {} that is not what I chose, I want to exchange it.",
        "Can I give the unused {} back in a shop?",
    )),
}  # fmt: skip

OPENINGS = ("", "", "Hello,", "Hi there,", "Good morning,", "Dear team,", "Hey,", "Hi, quick question.",
            "Hello, it is me again.", "Good day,", "I am rather annoyed.", "Sorry to bother you.")  # fmt: skip
CLOSINGS = ("", "", "Thanks!", "Please help.", "What should I do?", "Kind regards, Jo", "Thank you, Sam",
            "Please answer soon.", "This is urgent.", "Best, Kim", "I have been a customer for years.",
            "Looking forward to your reply.")  # fmt: skip
