package nbd

// through does the work of FUA with a server that does not know it: writes that are
// answered wait here for a flush, which covers those that were here when it was sent. The
// goroutine that handles an answer only puts the write here. The flush has a slot of its
// own and is sent without waiting, since what it would wait for may be the work of this
// same goroutine.
//
// Its fields are guarded by Client.mu. Where first is not nil, a flush is under
// way.
type through struct {
	flush   *call // nil: none was needed
	covered *call // writes that were answered before the flush was sent; linked by next
	first   *call // writes that were answered since
	under   bool  // a flush is under way
}

// answeredThrough keeps k, whose write has been answered, until it is stable.
func (c *Client) answeredThrough(k *call) {
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		c.tell(k, err)
		return
	}
	k.next = c.through.first
	c.through.first = k
	c.flushThrough()
}

// flushThrough sends the flush, if writes wait for one and none is under way. The caller
// holds mu, which is released.
func (c *Client) flushThrough() {
	t := &c.through
	if t.under || t.first == nil {
		c.mu.Unlock()
		return
	}
	t.covered, t.first, t.under = t.first, nil, true
	if t.flush == nil {
		t.flush = c.newCall()
		t.flush.flushes = true
	}
	k := t.flush
	req := request{cmd: cmdFlush}
	c.activate(k, &req)
	c.mu.Unlock()
	var head [requestLen]byte
	c.out.enqueue(req.append(head[:0]), c.lostSend)
}

// flushedThrough handles the answer to the flush.
func (c *Client) flushedThrough(err error) {
	c.mu.Lock()
	t := &c.through
	done := t.covered
	t.covered, t.under = nil, false
	var lost *call
	lostErr := c.err
	if lostErr != nil {
		lost, t.first = t.first, nil
	}
	c.flushThrough()
	c.tellAll(done, err)
	c.tellAll(lost, lostErr)
}

func (c *Client) tellAll(k *call, err error) {
	for k != nil {
		next := k.next
		k.next = nil
		c.tell(k, err)
		k = next
	}
}

// activate makes k a call under way. The caller holds mu.
func (c *Client) activate(k *call, req *request) {
	k.gen++
	req.handle = uint64(k.gen)<<32 | uint64(k.slot)
	k.req = *req
	c.watch()
	k.active = true
	c.active++
}
