package replication

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// What comments of exported identifiers say, and no other test does.

func TestWhatIsStillToBeCopiedIsNotVerified(t *testing.T) {
	p, s, _, _ := verifyRig(t, nil) // two chunks differ
	todo := NewBitmap(p.Size())
	todo.Set(3*ChunkSize, 1)
	must(t, p.Unsynchronise(todo))
	differ, err := p.VerifyOnline(t.Context(), VerifyConfig{Secondary: s.Export()})
	must(t, err)
	if differ.Any(3*ChunkSize, 1) || !differ.Any(7*ChunkSize, 1) {
		t.Errorf("%d bytes differ: what Synchronise is to copy, or not the other chunk", differ.Bytes())
	}
}

func TestAVerificationIsAsFastAsItMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, _, _ := verifyRig(t, nil)
		begin := time.Now()
		_, err := p.VerifyOnline(t.Context(), VerifyConfig{Secondary: s.Export(), BytesPerSecond: p.Size() / 8})
		must(t, err)
		if took := time.Since(begin).Round(time.Millisecond); took != 8*time.Second {
			t.Errorf("it has taken %v", took)
		}
		must(t, p.Stop(t.Context(), false))
	})
}

func TestAJournalIsOfADiskOfItsSize(t *testing.T) {
	hidden, active := newFake(minJournal, 0), newFake(minJournal, 0)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	s, err := NewSecondary(newFake(testSize, 0x11), SecondaryConfig{Journal: j})
	must(t, err)
	must(t, s.Start(t.Context()))
	for _, size := range []int{testSize / 2, 2 * testSize} {
		j, err = OpenJournal(hidden, active)
		must(t, err)
		_, _, err = j.Recover(t.Context(), newFake(size, 0x11))
		wantErr(t, "recovery of another", err, ErrSize)
	}
}

func TestASecondaryMayPermitThatItsCopyOfAnotherDiskIsOverwritten(t *testing.T) {
	for _, permits := range []bool{false, true} {
		m, err := OpenMetadata(newMetaDevice(testSize))
		must(t, err)
		s, err := NewSecondary(besideDisk{newFake(testSize, 0), m}, SecondaryConfig{Overwrite: permits})
		must(t, err)
		must(t, s.Adopt(Identity{Disk: newID(), Generation: Generation{1, 1}}))
		p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{})
		must(t, err)
		if err = joinOver(p, s); permits {
			must(t, err)
		} else {
			wantErr(t, "a primary of another disk", err, ErrIdentity)
		}
	}
}

func TestADiskThatHasAdoptedAnIdentityIsBlankNoMore(t *testing.T) {
	s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{Blank: true})
	must(t, err)
	if !s.Identity().Overwrite {
		t.Error("a blank disk may not be overwritten")
	}
	must(t, s.Adopt(Identity{Disk: newID(), Generation: Generation{1, 1}}))
	if s.Identity().Overwrite {
		t.Error("a disk that is a copy may be overwritten")
	}
}

func TestAnImageThatIsThereHasItsSizeAndItsMetadata(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := CreateFile(name, testSize)
	must(t, err)
	if _, err := f.Metadata(); err != nil {
		t.Fatal(err)
	}
	if err := f.KeepMetadata(name + ".elsewhere"); err == nil {
		t.Error("metadata that is in use was moved")
	}
	must(t, f.Close())
	_, err = CreateFile(name, 2*testSize)
	wantErr(t, "CreateFile of another size", err, ErrSize)
}

func TestAPrimaryThatWasStoppedBeginsAGenerationWithItsFirstWrite(t *testing.T) {
	ctx := context.Background()
	p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{Overwrite: true})
	must(t, err)
	s, err := NewSecondary(newFake(testSize, 0), SecondaryConfig{})
	must(t, err)
	protectFirst(t, p, s)
	must(t, p.Stop(ctx, false))
	before := p.Identity()
	if before.Generation != s.Identity().Generation {
		t.Errorf("it has begun %v before it has written", before.Generation)
	}
	write(t, p, 0x22, 0, BlockSize)
	if now := p.Identity(); now.Generation == before.Generation || !now.descends(before) {
		t.Errorf("the guest has gone on, and it is %v", now)
	}
}

// answerless is a Remote that gives its answers when it is told to.
type answerless struct {
	*fakeRemote
	release chan struct{}
}

func (r answerless) Progress(ctx context.Context) error {
	select {
	case <-r.release:
		return r.fakeRemote.Progress(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestAWriteThroughIsAnsweredWhenBothSidesHaveIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewPrimary(newFake(testSize, 0x11), PrimaryConfig{InSync: true, Overwrite: true})
		must(t, err)
		r := answerless{newFakeRemote(newFake(testSize, 0x11), 1), make(chan struct{})}
		must(t, p.Attach(r))
		answered := make(chan error, 1)
		go func() { answered <- p.WriteFUA(make([]byte, BlockSize), 0) }()
		synctest.Wait()
		select {
		case err := <-answered:
			t.Errorf("answered before the other side has: %v", err)
			answered <- nil
		default:
		}
		close(r.release)
		must(t, <-answered)
		must(t, p.Detach())
	})
}
