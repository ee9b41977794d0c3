package filter

import "time"

// dates are when the packets of a queue were taken, oldest first, in memory that does
// not grow: packets that came close to each other have the date of the first of them.
// How close depends on how many others wait. The zero value is that of an empty queue.
type dates struct {
	ring [maxDates]date
	head int
	n    int
	near time.Duration // a packet that comes no later than that after a date has it too
}

// A date is the time at which some packets were taken.
type date struct {
	at      time.Time
	packets int
}

// When there are maxDates, near is doubled until half of them are free. Dates are
// further apart than near, so at the end it is less than 4/(maxDates-2) of the time
// from the first to the last, which is less than a hundredth. It begins anew with a
// quarter of them.
const (
	maxDates = 512
	nearest  = 50 * time.Microsecond
)

func (d *dates) at(i int) *date { return &d.ring[(d.head+i)%maxDates] }

// push adds a packet that is taken now.
func (d *dates) push(now time.Time) {
	if d.n < maxDates/4 {
		d.near = nearest
	}
	if d.n > 0 {
		if last := d.at(d.n - 1); now.Sub(last.at) <= d.near {
			last.packets++
			return
		}
	}
	if d.n == maxDates {
		for d.n > maxDates/2 {
			d.near *= 2
			d.join()
		}
	}
	*d.at(d.n) = date{now, 1}
	d.n++
}

// join gives dates that are no further apart than near the first of them.
func (d *dates) join() {
	n := 1
	for i := 1; i < d.n; i++ {
		e, last := *d.at(i), d.at(n-1)
		if e.at.Sub(last.at) <= d.near {
			last.packets += e.packets
			continue
		}
		*d.at(n) = e
		n++
	}
	d.n = n
}

// pop removes the oldest packet and returns its date.
func (d *dates) pop() time.Time {
	first := d.at(0)
	if first.packets--; first.packets == 0 {
		d.head = (d.head + 1) % maxDates
		d.n--
	}
	return first.at
}

// clear forgets all.
func (d *dates) clear() { d.head, d.n = 0, 0 }
