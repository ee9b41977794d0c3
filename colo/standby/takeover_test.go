package standby

import "testing"

func TestWhoMayGoOnWithACopy(t *testing.T) {
	ask, arbiter, fence, both, always := Takeover{}, Takeover{Arbiter: true}, Takeover{Fence: true}, Takeover{Arbiter: true, Fence: true}, Takeover{Always: true}
	for _, c := range []struct {
		name string
		t    Takeover
		e    Evidence
		want Step
	}{
		{"the connection was closed, nobody knows why", ask, Evidence{Closed: true}, Wait},
		{"silence", ask, Evidence{}, Wait},
		{"a guardian says quit", always, Evidence{Closed: true, Guardian: GuardianHere, Word: Planned}, Forget},
		{"a guardian said quit before it ended, too", always, Evidence{Closed: true, Guardian: GuardianGone, Word: Planned}, Forget},
		{"a guardian says dead", ask, Evidence{Closed: true, Guardian: GuardianHere, Word: Dead}, GoOn},
		{"a guardian says dead before the session notices", ask, Evidence{Guardian: GuardianHere, Word: Dead}, GoOn},
		{"a guardian says dead, the arbiter comes first", arbiter, Evidence{Guardian: GuardianHere, Word: Dead}, AskArbiter},
		{"a guardian that answers is waited for, whatever the flags", always, Evidence{Closed: true, Guardian: GuardianHere}, Wait},
		{"and no fence is run beside it", fence, Evidence{Closed: true, Guardian: GuardianHere}, Wait},
		{"the guardian is gone with the host", ask, Evidence{Closed: true, Guardian: GuardianGone}, Wait},
		{"the same, with an arbiter", arbiter, Evidence{Guardian: GuardianGone}, AskArbiter},
		{"whose term has run out", arbiter, Evidence{Guardian: GuardianGone, Arbiter: Yes}, GoOn},
		{"that refuses", arbiter, Evidence{Closed: true, Arbiter: No}, Forget},
		{"that refuses an operator's order", arbiter, Evidence{Promoted: true, Arbiter: No}, Forget},
		{"granted, then fenced", both, Evidence{Arbiter: Yes}, RunFence},
		{"granted and fenced", both, Evidence{Arbiter: Yes, Fence: Yes}, GoOn},
		{"no fence before the arbiter", both, Evidence{}, AskArbiter},
		{"the fence has failed", fence, Evidence{Closed: true, Fence: No}, Wait},
		{"the fence has failed, then an operator looked", fence, Evidence{Closed: true, Fence: No, Promoted: true}, GoOn},
		{"always, and closed", always, Evidence{Closed: true}, GoOn},
		{"always, and silent", always, Evidence{}, Wait},
		{"an operator's order without a guardian", ask, Evidence{Promoted: true}, GoOn},
		{"an operator's order, the guardian answers", ask, Evidence{Promoted: true, Guardian: GuardianHere}, AskStop},
		{"and has stopped its guest", ask, Evidence{Promoted: true, Guardian: GuardianHere, Word: Stopped}, GoOn},
		{"an operator's order, and a guardian that hangs", ask, Evidence{Promoted: true, Running: true, Guardian: GuardianGone}, Wait},
		{"the same, with an arbiter, which cannot stop the guest", arbiter, Evidence{Promoted: true, Running: true, Guardian: GuardianGone, Arbiter: Yes}, Wait},
		{"and the guest does not run, as the operator says", ask, Evidence{Promoted: true, Running: true, Assured: true, Guardian: GuardianGone}, GoOn},
		{"and the guardian goes on, and stops it", ask, Evidence{Promoted: true, Running: true, Guardian: GuardianHere}, AskStop},
		{"the same, with a fence", fence, Evidence{Promoted: true, Running: true, Guardian: GuardianGone}, RunFence},
		{"the same, with an arbiter and a fence", both, Evidence{Promoted: true, Running: true, Guardian: GuardianGone}, AskArbiter},
		{"which has failed", fence, Evidence{Promoted: true, Running: true, Guardian: GuardianGone, Fence: No}, Wait},
		{"which has succeeded", fence, Evidence{Promoted: true, Running: true, Guardian: GuardianGone, Fence: Yes}, GoOn},
		{"an operator's order after the primary was lost, and its guardian", ask, Evidence{Promoted: true, Guardian: GuardianGone}, GoOn},
		{"an operator's order, but the guest runs on alone", ask, Evidence{Promoted: true, Guardian: GuardianHere, Word: Alone}, Forget},
	} {
		if got, why := c.t.Next(c.e); got != c.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", c.name, got, why, c.want)
		}
	}
}

// Every combination of what can be known, against what must hold in all of them.
func TestACopyIsNeverGoneOnWithWithoutAReason(t *testing.T) {
	bools := []bool{false, true}
	n := 0
	for _, a := range bools {
		for _, f := range bools {
			for _, always := range bools {
				for _, closed := range bools {
					for k := range 5 { // not promoted; promoted, with and without Running and Assured
						promoted, running, assured := k > 0, k == 2 || k == 4, k > 2
						for g := NoGuardian; g <= GuardianGone; g++ {
							for w := NoWord; w <= Stopped; w++ {
								for arb := NotAsked; arb <= No; arb++ {
									for fence := NotAsked; fence <= No; fence++ {
										n++
										rule := Takeover{Arbiter: a, Fence: f, Always: always}
										e := Evidence{Closed: closed, Guardian: g, Word: w, Promoted: promoted, Running: running, Assured: assured, Arbiter: arb, Fence: fence}
										step, _ := rule.Next(e)
										if step != GoOn {
											continue
										}
										reason := w == Dead || w == Stopped || promoted || a && arb == Yes || f && fence == Yes || always && closed
										alive := w == Planned || w == Alone || arb == No || g == GuardianHere && w == NoWord
										hangs := promoted && running && !assured && g == GuardianGone && w != Dead && w != Stopped && !(f && fence == Yes)
										if !reason || alive || hangs || a && arb != Yes {
											t.Errorf("%+v goes on by %+v", rule, e)
										}
									}
								}
							}
						}
					}
				}
			}
		}
	}
	if n != 2*2*2*2*5*3*5*3*3 {
		t.Errorf("%d combinations", n)
	}
}
