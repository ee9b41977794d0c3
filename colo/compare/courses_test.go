package compare_test

import (
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// opening is a connection that both guests accept.
const opening = "p SA 1000 501 => -\ns SA 9000 501 => 1000/501\n"

// What an engine does with the configuration that a proxy gives it.
func TestAnEngineOfAProxyTakesConnectionsThroughTheirCourse(t *testing.T) {
	cfg := everything()
	cfg.AckTimeout = time.Second
	for _, c := range []course{
		{"the secondary's guest cuts its stream otherwise", opening + "p PA 1001 501 helloworld => -\ns PA 1001 501 hello => -\ns PA 1006 501 world => 1001/501 helloworld"},
		{"the primary's guest does", opening + "p PA 1001 501 hello => -\np PA 1006 501 world => -\ns PA 1001 501 helloworld => 1001/501 hello, 1006/501 world"},
		{"the secondary's guest is first", opening + "s PA 1001 501 hel => -\ns PA 1004 501 loworld => -\np PA 1001 501 hello => 1001/501 hello\np PA 1006 501 world => 1006/501 world"},
		{"the secondary's guest says no more of a segment", opening + "p PA 1001 501 helloworld => -\ns PA 1001 501 hello => -\nwait 10 => 1001/501 hello\ns PA 1006 501 world => 1001/501 helloworld"},
		{"the secondary's guest says no more of a segment, and then of another in the next epoch", opening + "p PA 1001 501 helloworld => -\ns PA 1001 501 hello => -\ncheckpoint => 1001/501 helloworld\np PA 1011 501 othermore => -\ns PA 1011 501 other => -\nwait 10 => 1011/501 other\ns PA 1016 501 more => 1011/501 othermore"},
		{"the secondary's guest repeats a part", opening + "p PA 1001 501 helloworld => -\ns PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\ns PA 1006 501 world => 1001/501 helloworld"},
		{"the first part of a segment that a device cuts", opening + "p PA 1001 501 gso 4 helloworld => -\ns PA 1001 501 helloworld => 1001/501 helloworld"},
		{"the bytes differ", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hullo => !data\ncheckpoint => 1001/501 hello\np PA 1006 501 x => -\ns PA 1006 501 x => 1006/501 x"},
		{"the secondary's guest leaves bytes out", opening + "p PA 1001 501 hello => -\ns PA 1003 501 llo => !position\ncheckpoint => 1001/501 hello"},
		{"marks of congestion and PSH differ", opening + "p A 1001 501 hello => -\ns PAEC 1001 501 hello => 1001/501 hello"},

		{"FIN with data, and without", opening + "p FPA 1001 501 bye => -\ns PA 1001 501 bye => -\ns FA 1004 501 => 1001/501 bye"},
		{"FIN without data, and with", opening + "p PA 1001 501 bye => -\ns FPA 1001 501 bye => 1001/501 bye\np FA 1004 501 => 1004/501"},
		{"FIN of the secondary's guest only", opening + "p PA 1001 501 helloworld => -\ns FPA 1001 501 hello => !flags\ncheckpoint => 1001/501 helloworld"},
		{"FIN of the primary's guest only", opening + "p FA 1001 501 => -\ns PA 1001 501 more => !flags\ncheckpoint => 1001/501"},
		{"FIN at two places", opening + "p FPA 1001 501 bye => -\ns FPA 1001 501 by => !flags"},
		{"FIN that acknowledges more", opening + "p FPA 1001 502 bye => -\ns FPA 1001 501 bye => 1001/501 bye\ns A 1005 502 => 1005/502"},
		{"FIN, and everybody has closed", opening + "p FA 1001 501 => -\ns FA 1001 501 => 1001/501\np A 1002 502 => -\ns A 1002 502 => 1002/502"},
		{"FIN that a checkpoint covers, which the secondary's guest repeats", opening + "p FA 1001 501 => -\ncheckpoint => 1001/501\ns FA 1001 501 => -\np A 1002 502 => -\ns A 1002 502 => 1002/502\nwait 4000 => -"},
		{"FIN repeated, and nobody has received it", opening + "p FA 1001 501 => -\nmark\np FA 1001 501 => -\ns FA 1001 501 => -\nreceived => 1001/501, 1001/501"},

		{"both reset", opening + "p PA 1001 501 hello => -\np RA 1006 501 => -\ns PA 1001 501 hello => 1001/501 hello\ns RA 1006 501 => 1006/501"},
		{"the secondary's guest resets", opening + "p PA 1001 501 hello => -\ns RA 1001 501 => !flags\ncheckpoint => 1001/501 hello"},
		{"the primary's guest resets", opening + "p RA 1001 501 => -\ns PA 1001 501 hello => -\nwait 4000 => !timeout\ncheckpoint => 1001/501"},
		{"both refuse", "p RA 0 501 => -\ns RA 0 501 => 0/501"},
		{"the primary's guest refuses", "p RA 0 501 => -\ns SA 9000 501 => !flags\ncheckpoint => 0/501"},
		{"the secondary's guest refuses", "p SA 1000 501 => -\ns RA 0 501 => !flags\ncheckpoint => 1000/501"},
		{"a RST after the FIN, and the secondary's guest is first", opening + "s FA 1001 501 => -\ns RA 1002 501 => -\np FA 1001 501 => 1001/501\np RA 1002 501 => 1002/501"},
		{"that, with data", opening + "s FPA 1001 501 bye => -\ns RA 1005 501 => -\np PA 1001 501 bye => 1001/501 bye\np FA 1004 501 => 1004/501\np RA 1005 501 => 1005/501"},
		{"a RST of the secondary's guest in the place of the FIN", opening + "s RA 1001 501 => -\np FA 1001 501 => !flags\ncheckpoint => 1001/501"},
		{"a RST after the FIN", opening + "p FA 1001 501 => -\ns FA 1001 501 => 1001/501\np R 1002 0 => -\ns R 1002 0 => 1002/0"},

		{"an acknowledgment that both give", opening + "p A 1001 601 => -\ns A 1001 601 => 1001/601"},
		{"the secondary's guest gives it first", opening + "s A 1001 601 => -\np A 1001 601 => 1001/601"},
		{"the secondary's guest gives less", opening + "p A 1001 701 => -\ns A 1001 601 => 1001/601\ns A 1001 701 => 1001/701"},
		{"the secondary's guest gives more", opening + "p PA 1001 501 hello => -\ns PA 1001 601 hello => 1001/501 hello"},
		{"two of them are one", opening + "p A 1001 601 => -\np A 1001 701 => -\ns A 1001 701 => 1001/701"},
		{"repeated acknowledgments leave", opening + "p A 1001 601 => -\ns A 1001 601 => 1001/601\np A 1001 601 => 1001/601\np A 1001 601 => 1001/601\ns A 1001 601 => -"},
		{"repeated acknowledgments of a guest that is ahead do not", opening + "p A 1001 701 => -\ns A 1001 601 => 1001/601\np A 1001 701 => -\ns A 1001 701 => 1001/701"},
		{"data with lower numbers", opening + "p PA 1001 701 hello => -\ns PA 1001 601 hello => 1001/601 hello\np PA 1006 701 more => -\ns PA 1006 651 more => 1006/651, 1006/651 more\ns A 1010 701 => 1010/701"},
		{"a window that the secondary's guest does not have", opening + "p A 1001 601 => -\ns A 1001 601 win 950 => 1001/601 win 950\ns A 1001 601 => 1001/601"},
		{"a window of the first segment, which the secondary's guest does not have", opening + "p A 1001 501 win 2000 => -\ns A 1001 501 win 1500 => 1001/501 win 1500"},
		{"that, and the secondary's guest is first", "s SA 9000 501 => -\np SA 1000 501 => 1000/501\np A 1001 501 win 2000 => -\ns A 1001 501 win 1500 => 1001/501 win 1500"},
		{"that, and the connection before it had another scale", "p SA 1000 501 ws 7 => -\ns SA 9000 501 ws 7 => 1000/501\ns SA 9400 701 => -\ns A 9401 701 => -\np SA 400 701 => 400/701\np A 401 701 win 2000 => -\ns A 401 701 win 1500 => 401/701 win 1500"},
		{"that, and both sides call", "s S 9000 0 => -\ns SA 9000 501 => -\np S 1000 0 => 1000/0\np SA 1000 501 => 1000/501\np A 1001 501 win 2000 => -\ns A 1001 501 win 1500 => 1001/501 win 1500"},
		{"that, and the secondary's guest acknowledges what nobody has said", "s S 9000 0 => -\ns A 9001 501 => -\np S 1000 0 => 1000/0\nin SA 500 1001 => -\np A 1001 501 win 2000 => -\ns A 1001 501 win 1500 => 1001/501 win 1500"},
		{"that, of a connection which nobody has seen begin", "s A 1001 501 win 1500 => -\np A 1001 501 win 2000 => 1001/501 win 2000\np A 1001 601 win 1900 => -\ns A 1001 551 win 1450 => -\ns A 1001 601 win 1400 => 1001/601 win 1900"},
		{"signed, and the secondary's guest gives less", opening + "p PA 1001 601 md5 1 hello => -\ns PA 1001 501 md5 1 hello => -\ns A 1006 601 md5 1 => 1001/601 hello"},
		{"SACK of what both hold", opening + "s A 1001 501 sack 601-651 => -\np A 1001 501 sack 601-701 => 1001/501 sack 601-651\ns A 1001 501 sack 601-701 => 1001/501 sack 601-701"},
		{"SACK of what the primary's guest holds", opening + "p A 1001 501 sack 601-701 => -\ns A 1001 501 sack 601-701 => 1001/501 sack 601-701"},
		{"SACK of what was sent twice", opening + "p A 1001 501 sack 401-451 => 1001/501 sack 401-451"},
		{"SACK of two stretches", opening + "s A 1001 501 sack 801-901,601-701 => -\np A 1001 501 sack 601-651,801-1001 => 1001/501 sack 601-651 801-901"},
		{"SACK of what the guest that is rolled back holds", opening + "s A 1001 501 sack 601-701 => -\nmark\np A 1001 501 sack 601-701 => -\nreceived => -\nheard => -\ns A 1001 501 sack 601-701 => 1001/501 sack 601-701"},

		{"a segment that has waited, after a newer one", opening + "p PA 1001 501 ts 10 hello => -\np A 1006 501 ts 15 => 1001/501 ts 15\ns PA 1001 501 ts 9 hello => 1001/501 ts 15 hello\nin A 501 1006 ecr 15 => ecr 10"},
		{"that, and the echo is at an odd place", opening + "p PA 1001 501 ts 10 hello => -\np A 1006 501 ts 4000000000 => 1001/501 ts 4000000000\np A 1006 501 ts 70015 => 1001/501 ts 70015\ns PA 1001 501 ts 9 hello => 1001/501 ts 70015 hello\nin A 501 1006 oddecr 70015 => ecr 10"},
		{"a repetition with a newer timestamp", opening + "p PA 1001 501 ts 10 hello => -\np PA 1001 501 ts 20 hello => -\ns PA 1001 501 ts 11 hello => 1001/501 ts 20 hello\nin A 501 1006 ecr 20 => -"},
		{"an echo where nothing has left with a timestamp", "p S 1000 0 => -\ns S 9000 0 => 1000/0\np PA 1001 601 ts 20 ab => -\np PA 1001 601 ts 22 ab => -\ns PA 1001 501 ts 29 a => -\ns PA 1001 501 ts 30 a => -\nin A 501 1001 ecr 10 => ecr 22"},
		{"timestamps that wrap", opening + "p PA 1001 501 ts 4294967280 a => -\np PA 1002 501 ts 1 b => -\ns PA 1001 501 ts 7 a => 1001/501 ts 4294967280 a\ns PA 1002 501 ts 8 b => 1002/501 ts 1 b"},

		{"rolled back before the primary's guest says it", opening + "s PA 1001 501 hello => -\ncheckpoint => -\np PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello"},
		{"said after the mark by the guest that is rolled back", opening + "p PA 1001 501 hello => -\nmark\ns PA 1001 501 hello => -\nheard => 1001/501 hello"},
		{"said between the mark and the receipt", opening + "p PA 1001 501 a => -\nmark\np PA 1002 501 b => -\nreceived => 1001/501 a\ns PA 1002 501 b => -\nheard => -\ns PA 1002 501 b => 1002/501 b"},
		{"repeated between the mark and the receipt, and it has left", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\nmark\np PA 1001 501 hello => 1001/501 hello\nreceived => -"},
		{"repeated after the receipt", opening + "p PA 1001 501 hello => -\ncheckpoint => 1001/501 hello\np PA 1001 501 hello => 1001/501 hello"},
		{"an acknowledgment that the checkpoint takes back", opening + "s A 1001 701 => -\np A 1001 601 => 1001/601\nmark\np A 1001 701 => -\nreceived => -\nheard => -\ns A 1001 701 => 1001/701"},
		{"a marker of the checkpoint before", opening + "p PA 1001 501 a => -\nmark\nheard => 1001/501 a\np PA 1002 501 b => -\nmark\nheard 1 => -\np PA 1003 501 c => -\ns PA 1003 501 c => -\nreceived => 1002/501 b\nheard => -\ns PA 1003 501 c => 1003/501 c"},
		{"an acknowledgment that the secondary's guest does not give", opening + "p A 1001 701 => -\ns A 1001 601 => 1001/601\nwait 1500 => !ack\ncheckpoint => 1001/701\nwait 1500 => -"},
		{"an acknowledgment that the checkpoint has", opening + "p A 1001 701 => -\nmark\nreceived => 1001/701\np A 1001 701 => 1001/701"},
		{"two connections, of which one differs", "p SA 1000 501 port 1 => -\np SA 1000 501 port 2 => -\ns SA 9000 501 port 2 => 1000/501\ns SA 9000 501 port 1 => 1000/501\np PA 1001 501 port 1 hello => -\ns PA 1001 501 port 1 hullo => !data\np PA 1001 501 port 2 abc => -\ns PA 1001 501 port 2 abc => 1001/501 abc\ncheckpoint => 1001/501 hello"},
		{"the order of two connections at a checkpoint", "p PA 1001 501 port 1 a => -\np PA 1001 501 port 2 b => -\np PA 1002 501 port 1 c => -\np udp 80 9 d => -\ncheckpoint => 1001/501 a, 1001/501 b, 1002/501 c, udp d"},
		{"a failover", opening + "p PA 1001 501 hello => -\nfailover => 1001/501 hello\np PA 1006 501 x => 1006/501 x"},
		{"a failover while less has been acknowledged", opening + "p A 1001 701 => -\ns A 1001 601 => 1001/601\nfailover => 1001/701"},
		{"a failover between the mark and the receipt", opening + "p PA 1001 501 a => -\nmark\np PA 1002 501 b => -\nfailover => 1001/501 a, 1002/501 b"},
		{"a failover, and another session", opening + "failover => -\np PA 1001 501 a => 1001/501 a\ncheckpoint => -\np PA 1002 501 b => -\ns PA 1002 501 b => 1002/501 b"},
		{"a failover, and another session, and a window that its secondary's guest does not have", opening + "failover => -\nmark\np A 1001 601 win 2000 => -\nreceived => -\nheard => -\ns A 1001 601 win 1500 => 1001/601 win 1500\ns A 1001 601 win 2000 => 1001/601 win 2000"},
		{"a connection from before the session goes on", "failover => -\np SA 1000 501 => 1000/501\np PA 1001 601 hello => 1001/601 hello\ncheckpoint => -\np PA 1006 601 x => -\ns PA 1006 601 x => 1006/601 x"},
		{"that, and the secondary's guest is first", "failover => -\np SA 1000 501 => 1000/501\np PA 1001 601 hello => 1001/601 hello\ncheckpoint => -\ns PA 1006 601 x => -\np PA 1006 601 x => 1006/601 x"},
		{"that, and it is closed", "failover => -\np SA 1000 501 => 1000/501\np PA 1001 601 hello => 1001/601 hello\ncheckpoint => -\np FA 1006 601 => -\ns FA 1006 601 => 1006/601"},
		{"that, and less has been acknowledged", "failover => -\np SA 1000 501 => 1000/501\np PA 1001 601 hello => 1001/601 hello\ncheckpoint => -\np A 1006 701 => -\ns A 1006 651 => 1006/651\ns A 1006 701 => 1006/701"},
		{"that, and the guest has called", "failover => -\np S 1000 0 => 1000/0\nin SA 500 1001 => -\np PA 1001 501 hello => 1001/501 hello\ncheckpoint => -\np PA 1006 501 x => -\ns PA 1006 501 x => 1006/501 x"},
		{"that, and its SYN|ACK is repeated", "failover => -\np SA 1000 501 => 1000/501\ncheckpoint => -\np SA 1000 501 => -\ns SA 1000 501 => 1000/501"},
		{"nothing comes", opening + "p PA 1001 501 hello => -\nwait 4000 => !timeout\ncheckpoint => 1001/501 hello"},

		{"the SYN|ACK is repeated", opening + "p SA 1000 501 => 1000/501\ns SA 9000 501 => -\np PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello"},
		{"the guest calls again, and asks for no marks of congestion", "p SEC 1000 0 => -\ns SEC 9000 0 => 1000/0\np S 1000 0 => -\ns S 9000 0 => 1000/0\np S 1000 0 => 1000/0"},
		{"only the primary's guest asks for none when it calls again", "p SEC 1000 0 => -\ns SEC 9000 0 => 1000/0\np S 1000 0 => -\ns SEC 9000 0 => -\ncheckpoint => 1000/0\np S 1000 0 => 1000/0"},
		{"a SYN|ACK between the mark and the receipt, which the secondary's guest gives again as it was", "s SA 9000 501 => -\nmark\np SA 1000 501 => -\nreceived => -\nheard => -\ns SA 9000 501 => 1000/501"},
		{"that, of a guest that repeats the one before", opening + "mark\np SA 2000 801 => -\nreceived => -\nheard => -\ns SA 1000 501 => -\ns SA 9000 801 => 2000/801"},
		{"that, twice", "s SA 9000 501 => -\nmark\np SA 1000 501 => -\np SA 2000 701 => !flags\nreceived => -\nheard => -\ns SA 9000 701 => -\ncheckpoint => 1000/501, 2000/701"},
		{"data with a SYN|ACK", "p SA 1000 501 hello => !flags\ns SA 9000 501 hello => -\ncheckpoint => 1000/501 hello\np PA 1006 501 x => -\ns PA 1006 501 x => 1006/501 x"},
		{"data with a SYN|ACK that is repeated between the mark and the receipt", "p SA 1000 501 => -\nmark\np SA 1000 501 hello => !flags\nreceived => 1000/501\nheard => -\ncheckpoint => 1000/501 hello\np SA 1000 501 hello => 1000/501 hello"},
		{"the guest calls", "p S 1000 0 => -\ns S 9000 0 => 1000/0\nin SA 500 1001 => -\np A 1001 501 => -\ns A 1001 501 => 1001/501\np A 1001 701 => -\ns A 1001 601 => 1001/601"},
		{"the guest calls, and nobody knows the scale", "p S 1000 0 => -\ns S 9000 0 => 1000/0\np A 1001 701 => -\ns A 1001 601 => -\ns A 1001 701 => 1001/701"},
		{"the guests call from two ports", "p S 1000 0 from 5000 => -\ns S 9000 0 from 5001 => !ports\ncheckpoint => 1000/0"},
		{"both sides call", "p S 1000 0 => -\ns S 9000 0 => 1000/0\np SA 1000 501 => -\ns SA 9000 501 => 1000/501"},
		{"the same addresses again", opening + "p FA 1001 501 => -\ns FA 1001 501 => 1001/501\np A 1002 502 => -\ns A 1002 502 => 1002/502\np SA 400 701 => -\ns SA 9400 701 => 400/701\np PA 401 701 new => -\ns PA 401 701 new => 401/701 new"},
		{"the same addresses again, and the secondary's guest is first", opening + "s SA 9400 701 => -\np SA 400 701 => 400/701\np PA 401 701 new => -\ns PA 401 701 new => 401/701 new"},
		{"the same addresses again, and the old connection waits", opening + "p PA 1001 501 hello => -\np SA 400 701 => !flags\ns SA 9400 701 => -\ncheckpoint => 1001/501 hello, 400/701"},
		{"the same addresses again, and the old connection waits with an older timestamp", opening + "p PA 1001 501 ts 10 hello => -\np A 1006 501 ts 15 => 1001/501 ts 15\np SA 400 701 ts 20 => !flags\ncheckpoint => 1001/501 ts 15 hello, 400/701 ts 20"},
		{"the same addresses again, which the secondary's guest has from the checkpoint", opening + "p SA 400 701 => -\ncheckpoint => 400/701\np PA 401 701 new => -\ns PA 401 701 new => 401/701 new"},
		{"a sign of life", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\np A 1005 501 => 1005/501\np A 1005 501 z => 1005/501 z"},
		{"both sides call, and the client does not scale", "p S 1000 0 ws 7 => -\ns S 9000 0 ws 7 => 1000/0\np SA 1000 501 => -\ns SA 9000 501 => 1000/501\np A 1001 501 win 2000 => -\ns A 1001 501 win 1500 => 1001/501 win 1500"},
		{"data with a SYN that calls", "p S 1000 0 hello => !flags\ns S 9000 0 hello => -\ncheckpoint => 1000/0 hello\nin SA 500 1006 => -\np A 1006 501 => -\ns A 1006 501 => 1006/501"},
		{"data with a SYN that calls, and then none", "p S 1000 0 hello => !flags\np S 1000 0 => -\ns S 9000 0 hello => -\ns S 9000 0 => -\ncheckpoint => 1000/0 hello, 1000/0\nin SA 500 1001 => -\np PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello"},
		{"a half that is closed, and the other is not", opening + "p FA 1001 501 => -\ns FA 1001 501 => 1001/501\np A 1002 601 => -\ns A 1002 551 => 1002/551\ns A 1002 601 => 1002/601\np A 1002 601 => 1002/601"},
		{"everybody has closed, and the client repeats its FIN", opening + "p FA 1001 502 => -\ns FA 1001 502 => 1001/502\np A 1002 502 => 1002/502\np A 1002 502 => 1002/502\ns A 1002 502 => -\nwait 4000 => -"},
		{"a SYN of a stranger is answered", opening + "p PA 1001 501 hello => -\np A 1006 501 => 1001/501\ns PA 1001 501 hello => 1001/501 hello\ns A 1006 501 => -\nin R 501 0 => -\np PA 1006 501 x => -\ns PA 1006 501 x => 1006/501 x"},
		{"a RST whose acknowledgment the secondary's guest has not given", opening + "p RA 1001 601 => -\ns RA 1001 501 => 1001/501"},
		{"urgent data", opening + "p UPA 1001 501 urg 3 abc => -\ns UPA 1001 501 urg 3 abc => 1001/501 abc"},
		{"urgent data of one guest", opening + "p UPA 1001 501 urg 3 abc => -\ns PA 1001 501 abc => !flags"},

		{"datagrams cross", "p udp 80 9 a => -\np udp 80 9 b => -\np udp 80 9 c => -\ns udp 80 9 c => udp c\ns udp 80 9 a => udp a\ns udp 80 9 b => udp b"},
		{"datagrams that wait for their equals in two epochs", "p udp 80 9 a => -\ns udp 80 9 b => -\ncheckpoint => udp a\np udp 80 9 c => -\ns udp 80 9 d => -\nwait 25 => !packet\ncheckpoint => udp c"},
		{"datagrams without data, twice", "p udp 80 9 => -\np udp 80 9 => -\ns udp 80 9 => udp\ns udp 80 9 => udp"},
		{"a datagram without a checksum", "p udp0 80 9 a => -\ns udp 80 9 a => -\nwait 25 => !packet\ncheckpoint => udp a"},
		{"a longer answer", "p udp 80 9 ab => -\ns udp 80 9 abc => !packet\ncheckpoint => udp ab"},
		{"queries from two ports", "p udp 5000 53 xxSameQuestion => -\ns udp 5001 53 yysameQuestion => !ports\ncheckpoint => udp xxSameQuestion"},
		{"an answer to an echo differs", "p echo 1 abc => -\ns echo 1 abd => !packet\ncheckpoint => icmp abc"},
		{"answers to echoes cross", "p echo 1 abc => -\ns echo 2 def => -\np echo 2 def => icmp def\ns echo 1 abc => icmp abc"},
		{"ICMP errors cross", "p unreachable abc => -\ns unreachable def => -\np unreachable def => icmp def\ns unreachable abc => icmp abc"},
		{"fragments", "p fragment 7 0 more aaaaaaaa => -\ns fragment 9 0 more aaaaaaaa => fragment aaaaaaaa\ns fragment 9 8 last bbb => -\np fragment 7 8 last bbb => fragment bbb"},
		{"fragments of two places", "p fragment 7 8 more aaaaaaaa => -\ns fragment 9 16 more aaaaaaaa => !packet\ncheckpoint => fragment aaaaaaaa"},
		{"the last fragment and another one", "p fragment 7 8 last aaaaaaaa => -\ns fragment 9 8 more aaaaaaaa => !packet\ncheckpoint => fragment aaaaaaaa"},
		{"fragments that are cut otherwise", "p fragment 7 0 more aaaaaaaabbbbbbbb => -\ns fragment 9 0 more aaaaaaaa => !packet\ncheckpoint => fragment aaaaaaaabbbbbbbb"},
		{"what cannot be compared", "p ether => -\ns ether => -\nwait 4000 => !timeout\ncheckpoint => ether"},
	} {
		c.events = "checkpoint\n" + c.events
		for _, v := range vessels() {
			for _, thorough := range []bool{false, true} {
				c.run(t, cfg, &v, thorough)
			}
		}
	}
}

// What an engine does as it is without further configuration: as colo-compare ought to.
func TestAnEngineTakesConnectionsThroughTheirCourse(t *testing.T) {
	for _, c := range []course{
		{"the secondary's guest cuts its stream otherwise", opening + "p PA 1001 501 helloworld => -\ns PA 1001 501 hello => -\ns PA 1001 501 hello => -\nwait 10 => -\ns PA 1006 501 world => 1001/501 helloworld"},
		{"the primary's guest says the second first", opening + "p PA 1006 501 world => -\np PA 1001 501 hello => -\ns PA 1001 501 helloworld => 1001/501 hello, 1006/501 world"},
		{"the secondary's guest does, before the primary's", opening + "s PA 1006 501 world => -\ns PA 1001 501 hello => -\np PA 1001 501 helloworld => 1001/501 helloworld"},
		{"the secondary's guest does, and the primary's is between", opening + "s PA 1006 501 world => -\np PA 1001 501 helloworld => !position\ns PA 1001 501 hello => 1001/501 helloworld"},
		{"repeated when it has left", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\np PA 1001 501 hello => -\ns A 1006 501 => 1001/501 hello"},
		{"repeated in one with more", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\np PA 1001 501 helloworld => -\ns PA 1006 501 world => 1001/501 helloworld"},
		{"repeated after the checkpoint", opening + "p PA 1001 501 hello => -\ncheckpoint => 1001/501 hello\np PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello"},
		{"repeated between the mark and the receipt, and it has left", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\nmark\np PA 1001 501 hello => -\nreceived => -\nheard => -\ns A 1006 501 => 1001/501 hello"},
		{"the bytes differ", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hullo => !data\ncheckpoint => 1001/501 hello"},

		{"the acknowledgment is less", opening + "p PA 1001 601 hello => -\ns PA 1001 501 hello => !ack\ns A 1006 601 => 1001/601 hello"},
		{"an acknowledgment is less", opening + "p A 1001 601 => -\ns A 1001 551 => -\ns A 1001 601 => 1001/601"},
		{"two acknowledgments", opening + "p A 1001 601 => -\np A 1001 701 => -\ns A 1001 701 => 1001/601, 1001/701"},
		{"an acknowledgment that the checkpoint takes back", opening + "s A 1001 701 => -\np A 1001 601 => 1001/601\nmark\np A 1001 701 => -\nreceived => -\nheard => -\ns A 1001 701 => 1001/701"},
		{"a window that the secondary's guest does not have", opening + "p A 1001 601 => -\ns A 1001 601 win 950 => 1001/601"},
		{"SACK of what the primary's guest holds", opening + "p A 1001 501 sack 601-701 => 1001/501 sack 601-701"},
		{"a segment that has waited, after a newer one", opening + "p PA 1001 501 ts 10 hello => -\np A 1006 501 ts 15 => -\ns PA 1001 501 ts 9 hello => 1001/501 ts 10 hello, 1006/501 ts 15"},

		{"FIN with data, and without", opening + "p FPA 1001 501 bye => -\ns PA 1001 501 bye => -\ns FA 1004 501 => 1001/501 bye"},
		{"FIN without data, and with", opening + "p PA 1001 501 bye => -\ns FPA 1001 501 bye => 1001/501 bye\np FA 1004 501 => 1004/501"},
		{"FIN that acknowledges more", opening + "p FPA 1001 502 bye => -\ns FPA 1001 501 bye => !ack\ns A 1005 502 => 1001/502 bye"},
		{"FIN of the secondary's guest only", opening + "p PA 1001 501 helloworld => -\ns FPA 1001 501 hello => !flags"},
		{"both reset", opening + "p RA 1001 501 => -\ns RA 1001 501 => 1001/501"},
		{"the secondary's guest resets", opening + "s RA 1001 501 => -\np PA 1001 501 hello => !flags"},
		{"the secondary's guest refuses", "p SA 1000 501 => -\ns RA 0 501 => !flags"},
		{"the SYN|ACK is repeated", opening + "p SA 1000 501 => -\ns SA 9000 501 => 1000/501"},
		{"the guest calls", "p S 1000 0 => -\ns S 9000 0 => 1000/0\np A 1001 501 => -\ns A 1001 501 => 1001/501\np A 1001 701 => -\ns A 1001 601 => -\ns A 1001 701 => 1001/701"},
		{"the same addresses again", opening + "p FA 1001 501 => -\ns FA 1001 501 => 1001/501\np SA 400 701 => -\ns SA 9400 701 => 400/701\np PA 401 701 new => -\ns PA 401 701 new => 401/701 new"},
		{"the same addresses again, and the old connection waits", opening + "p PA 1001 501 hello => -\np SA 400 701 => !flags\ncheckpoint => 1001/501 hello, 400/701"},
		{"a sign of life", opening + "p PA 1001 501 hello => -\ns PA 1001 501 hello => 1001/501 hello\np A 1005 501 => 1005/501\np A 1005 501 z => -\ns A 1005 501 => 1005/501 z"},
		{"urgent data", opening + "s UPA 1001 501 urg 3 abc => -\np UPA 1001 501 urg 3 abc => 1001/501 abc"},
		{"loaded before the receipt", opening + "p PA 1001 501 a => -\nmark\nloaded\np PA 1002 501 b => -\ns PA 1002 501 b => -\nreceived => 1001/501 a\ns PA 1002 501 b => 1002/501 b"},
		{"loaded after the receipt", opening + "p PA 1001 501 a => -\nmark\nreceived => 1001/501 a\np PA 1002 501 b => -\ns PA 1002 501 b => -\nloaded\ns PA 1002 501 b => 1002/501 b"},
		{"a failover", opening + "p PA 1001 501 hello => -\np udp 80 9 a => -\nfailover => 1001/501 hello, udp a\ns PA 1001 501 hello => -\np PA 1006 501 x => 1006/501 x"},

		{"datagrams cross", "p udp 80 9 a => -\np udp 80 9 b => -\ns udp 80 9 b => udp b\ns udp 80 9 a => udp a"},
		{"errors of ICMP that quote one packet", "p unreachable abc => -\ns unreachable abc 30 => !packet\ncheckpoint => icmp abc"},
		{"what cannot be compared", "p ether => ether\ns ether => -"},
	} {
		for _, v := range vessels() {
			for _, thorough := range []bool{false, true} {
				if !v.tagged {
					c.run(t, compare.Config{}, &v, thorough)
				}
			}
		}
	}
}
