"""Wrong inputs of all commands, one a line, as a shell has them.

In braces: `long`, a name of 300 characters; `huge`, 10²⁴; `digits`, 400 digits; `file`,
a text file; `empty`, an empty folder; `loop`, a link to itself; `gone`, a link to
nothing; `fifo`, a named pipe; `store`, a sweep; `garbage`, a folder that only looks
like a store; `here`, the folder of all of them.
"""

COMMANDS = """
flowattn
--bogus
runs
Run
""
""
run
laws
sweep
plot
figure
list extra
list --foo
list --out x
-1
run --help-me
"""

SYSTEMS = """
run ""
run topic-word
run fokus --reduced
run {long}
run 3
run focus keyword
run focus --reduced extra
laws
laws focuss
laws --t1 3
sweep keywrd --out s
sweep --out s
sweep focus --reduced
sweep ../focus --out s
"""

FLAGS = """
run focus --reducd
run focus --t1
run focus --t1 ten
run focus --t1 ""
run focus --t1 1,5
run focus --t1 1e
run focus --t1 0x10
run focus --rtol abc
run focus --steps 1.5
run focus --steps 1e3
run focus --seed x
run focus --seed 1.0
run focus --solver euler
run focus --solver TSIT5
run focus --spacing lin
run focus --precision float16
run focus --precision 64
run focus --flow maybe
run focus --order 3
run focus --flow descent --order 7
run focus --flow descent --order 1.5
run focus --flow descent --no-flow
run focus --flow modified --optimizer adam --learning-rate 1
run focus --flow modified --order 2
run focus --flow descent --flow-after -1
run focus --flow descent --flow-after 100000
run focus --flow-after 1
run focus --switch-time 100 --loss hybrid --flow descent
run ktiw --flow descent
run ktiw --order 2
orders
orders ktiw
orders focus --halvings 0
orders focus --halvings 31
orders focus --halvings 1.5
orders focus --flow modified --order 2
orders focus --flow maybe
orders focus --order 7
orders focus --out table.txt
orders focus --out .
orders focus --seed -1
orders focus --rtol 0
orders focus --t1 -1
orders focus --t1 nan
orders focus --flow-after -1
orders focus --optimizer adam
orders focus-images
run focus --no-reduced=1
run focus --loss sotf
run focus --loss
run focus --classes
run focus --classes two
run focus --classes 2.5
run focus --segments None2
run focus --then soft
run focus-images --images mnist
run focus --network rnn
run focus --out
run focus --resume yes
run topic-words --topic 3
run topic-words --classifer linear
run topic-words --trained key
run topic-words --trained
run topic-words --padding hide
run topic-words --form words
run topic-words --vocabulary -
run topic-words --topics --t1 5
run keyword --attention hard
run keyword --logits 3
run keyword --beta0 a
run copying --scores tied
run copying-models --size huge
run copying --model lstm
run ktiw --corpus
run ktiw --dimension x
plot
plot {store} --colr alpha
plot {store} --x
plot {store} extra
figure
figure keyword-phas
figure all extra
figure keyword-phase --size 3
figure --size paper
figure keyword-phase --size
sweep focus --vary
sweep focus --vary start_mu=1,2 --seeds x --out s
sweep focus --vary start_mu=1,2 --workers two --out s
"""

NUMBERS = """
run focus --reduced --t1 nan
run focus --reduced --t1 inf
run focus --reduced --t1 -inf
run focus --reduced --t1 0
run focus --reduced --t1 -5
run focus --reduced --t1 1e400
run focus --reduced --rtol 0
run focus --reduced --rtol -1e-6
run focus --reduced --rtol nan
run focus --reduced --rtol 2
run focus --reduced --rtol 1e-40
run focus --reduced --precision float32 --rtol 1e-9
run focus --reduced --atol 0
run focus --reduced --atol -1
run focus --reduced --atol inf
run focus --reduced --max-steps 0
run focus --reduced --max-steps -3
run focus --reduced --max-steps {huge}
run focus --reduced --max-steps {digits}
run focus --learning-rate 0
run focus --learning-rate -0.1
run focus --learning-rate nan
run focus --learning-rate inf
run focus --learning-rate 1e-300
run focus --momentum 1
run focus --momentum -0.1
run focus --momentum nan
run focus --momentum 2
run focus --momentum 0.9 --optimizer adam --learning-rate 0.1
run focus --nesterov
run focus --optimizer adam
run focus --optimizer adagrad --learning-rate 0.1
run focus --weight-decay -0.1
run focus --weight-decay nan
run focus --schedule linear
run focus --schedule cosine --no-descent
run focus --schedule cosine --steps 0
run focus --outputs 0
run focus --outputs {huge}
run focus --steps 0
run focus --steps -10
run focus --steps {huge}
run focus --steps {digits}
run focus --t1 0.01 --learning-rate 1
run focus --patience 0
run focus --patience -1
run focus --patience {huge}
run focus --validate-from 5
run focus --validate-from -5
run focus --validate-from -5 --patience 3
run focus --validate-from {huge} --patience 3
run focus --seed -1
run focus --seed 4294967296
run focus --seed {huge}
run focus --seed {digits}
run focus --sharpness -1
run focus --no-flow --no-descent
run focus --reduced --no-flow
run focus --classes 1
run focus --classes 0
run focus --classes -2
run focus --classes {huge}
run focus --classes {digits}
run focus --segments 1
run focus --segments {huge}
run focus --mosaics 0
run focus --mosaics {huge}
run focus --mosaics {digits}
run focus --noise nan
run focus --noise -1
run focus --noise inf
run focus --fixed-focus 0
run focus --fixed-focus 1.5
run focus --fixed-focus nan
run focus --fixed-focus 0.5 --loss hybrid
run focus --switch-time 5
run focus --loss hybrid --switch-time -1
run focus --loss hybrid --switch-time nan
run focus --loss hybrid --switch-time 30 --t1 20
run focus --start-mu inf
run focus --start-nu nan
run focus --start-nu 1e400
run gradient-starvation --strength 1e200
run gradient-starvation --strength 1e-200
run gradient-starvation --penalty 1e200
run gradient-starvation --init 1e200
run token-selection --rho 1e200
run positional-semantic --sigma 1e200
run positional-semantic --penalty 1e200
run linear-icl --init 1e200
run keyword --beta0 1e200
run keyword --beta0 1e-200
run linear-icl --heads 100000000
run linear-icl --dimension 100000
run positional-semantic --alpha 1e9
run focus --batch 0
run focus --batch -1
run focus --batch 3 --reduced
run focus --batch {huge}
run focus --network mlp
run focus-images --reduced
run focus-images --segments 400
run focus-images --segments {huge}
run focus-images --mosaics {huge}
run focus-images --start-mu 1
run focus-images --no-descent
run topic-words --topics 1
run topic-words --topics 0
run topic-words --topics -3
run topic-words --topics {huge}
run topic-words --vocabulary 0
run topic-words --vocabulary -1
run topic-words --vocabulary {huge}
run topic-words --sentences 0
run topic-words --sentences 1
run topic-words --sentences {huge}
run topic-words --dimension 0
run topic-words --dimension {huge}
run topic-words --context 0
run topic-words --context {huge}
run topic-words --query-scale nan
run topic-words --query-scale -1
run topic-words --words-per-topic 0
run topic-words --words-per-topic {digits}
run keyword --p 2
run keyword --p nan
run keyword --beta0 nan
run keyword --beta1 inf
run keyword --attention softmax --p 0
run keyword --logits 2
run copying --length 0
run copying --length 1
run copying --length {huge}
run copying --vocabulary 0
run copying --vocabulary {digits}
run copying --start nan
run copying --start-values inf
run copying --heads 0
run copying-starts --starts 0
run copying-models --networks -1
run copying --start-scale -1
run ktiw --dimension 0
run ktiw --key-dimension -2
run ktiw --others -1
run ktiw --t1 5
run ktiw --sharpness 2
run ktiw --momentum 0.5
run ktiw --schedule cosine
run ktiw --optimizer sgd --learning-rate 0.1
run ktiw --patience 3
run ktiw --no-descent
run focus --then marginal
run focus --reduced --noise 3
run focus-images --classes 5
run focus --fixed-focus 0.5 --start-nu 2
run topic-words --corpus sst2 --topics 9
run topic-words --traced good
run topic-words --sentence 3
run ktiw --rtol 1e-3
run ktiw --spacing log
run focus --reduced --patience 5
run keyword --no-descent --learning-rate .1
run focus --no-descent --momentum .5
run focus --no-flow --rtol 1e-3
laws focus --t1 nan
laws focus --rtol 5
laws focus --steps -1
"""

PATHS = """
run focus --reduced --out ""
run focus --reduced --out {file}
run focus --reduced --out {file}/in
run focus --reduced --out {long}
run focus --reduced --out {loop}
run focus --reduced --out {loop}/in
run focus --reduced --out /proc/flowattn/x
run focus --reduced --out /dev/null
run focus --reduced --out ~nosuchuser/x
run focus --reduced --resume
run focus --reduced --anew
run focus --reduced --resume --anew --out o
run focus --reduced --data {here}/none
run focus --reduced --data ""
run focus --reduced --data {file}
run focus --reduced --data {long}
run focus --reduced --data ~nosuchuser
run focus --task cifar10
run focus --task cifar10 --data {empty}
run focus --task cifar10 --data {loop}
run topic-words --corpus sst3
run topic-words --corpus ""
run topic-words --corpus sst2
run topic-words --corpus sst2 --data {empty}
run topic-words --corpus {here}/none
run topic-words --corpus {file}
run topic-words --corpus {empty}
run topic-words --corpus {long}
run topic-words --corpus {loop}
run topic-words --corpus {gone}
run topic-words --corpus {fifo}
run topic-words --corpus /dev/null
run topic-words --corpus ~nosuchuser/x
run ktiw --corpus sst9
run ktiw --corpus {file}
figure keyword-phase --out {file}
figure keyword-phase --out ""
figure keyword-phase --out {long}
figure keyword-phase --data {here}/none
figure keyword-phase --data {file}
figure keyword-phase --data {loop}
figure sst2-sen
figure sst2-sen --data {empty}
plot ""
plot {here}/none
plot {file}
plot {empty}
plot {long}
plot {loop}
plot {garbage}
plot {here}
plot /dev/null
plot ~nosuchuser/s.zarr
plot nosuch://x/y
plot {store} --out ""
plot {store} --out x
plot {store} --out x.jpeg
plot {store} --out {long}.png
plot {store} --out {file}/x.png
plot {store} --out {empty}
plot {store} --out .png
plot {store} --x nothing
plot {store} --x alpha
plot {store} --x start_mu --y start_mu
plot {store} --y nothing
plot {store} --color alhpa
plot {store} --color ""
plot {store} --where start_mu
plot {store} --where start_mu=
plot {store} --where =1
plot {store} --where start_mu=x
plot {store} --where alpha=1
plot {store} --where seed=1 --where seed=2
plot {store} --where nothing=1
plot {store} --where seed=nan
"""

SWEEPS = """
sweep focus --reduced --vary start_mu --out s
sweep focus --reduced --vary =1,2 --out s
sweep focus --reduced --vary start_mu= --out s
sweep focus --reduced --vary start_mu=a --out s
sweep focus --reduced --vary start_mu=1,,2 --out s
sweep focus --reduced --vary start_mu=1,1 --out s
sweep focus --reduced --vary start_mu=nan --out s
sweep focus --reduced --vary start_mu=inf,1 --out s
sweep focus --reduced --vary start_mu=1e400 --out s
sweep focus --reduced --vary start_mu=1:2 --out s
sweep focus --reduced --vary start_mu=1:2:0 --out s
sweep focus --reduced --vary start_mu=1:2:-3 --out s
sweep focus --reduced --vary start_mu=1:2:3.5 --out s
sweep focus --reduced --vary start_mu=1:2:1 --out s
sweep focus --reduced --vary start_mu=1:1:3 --out s
sweep focus --reduced --vary start_mu=1:2:3:cubic --out s
sweep focus --reduced --vary start_mu=1:2:3:log:4 --out s
sweep focus --reduced --vary start_mu=-1:2:3:log --out s
sweep focus --reduced --vary start_mu=1:inf:3 --out s
sweep focus --reduced --vary start_nu=-1e308:1e308:3 --out s
sweep focus --reduced --vary start_mu=1:2:{huge} --out s
sweep focus --reduced --vary start_mu=1:2:{digits} --out s
sweep focus --reduced --vary start_mu=1:2:1000001 --out s
sweep focus --reduced --vary start_mu=0:1:100000 --vary start_nu=0:1:100000 --out s
sweep focus --reduced --vary start_m=1,2 --out s
sweep focus --reduced --vary nothing=1,2 --out s
sweep focus --reduced --vary seed=1,2 --out s
sweep focus --reduced --vary {long}=1,2 --out s
sweep focus --reduced --vary start_mu={long} --out s
sweep focus --reduced --vary start_mu=1,2 --vary start-mu=3 --out s
sweep focus --reduced --vary classes=1,2 --out s
sweep focus --reduced --vary classes=2.5,3 --out s
sweep focus --reduced --vary classes=2:3:3 --out s
sweep focus --reduced --vary classes={huge} --out s
sweep focus --reduced --vary classes={digits} --out s
sweep focus --reduced --vary classes=2:{huge}:2 --out s
sweep focus --reduced --vary classes=2:200002:200001 --out s
sweep focus --reduced --vary loss=soft,sotf --out s
sweep focus --reduced --vary loss=1:2:3 --out s
sweep focus --reduced --vary loss=soft,hard --out s
sweep focus --reduced --vary reduced=true,perhaps --out s
sweep focus --reduced --vary solver=euler --out s
sweep focus --reduced --vary t1=0,1 --out s
sweep focus --reduced --vary t1=1,2 --t1 3 --out s
sweep focus --reduced --vary noise=0,1 --out s
sweep focus --reduced --vary t1=-1,1 --out s
sweep focus --reduced --vary rtol=1e-3,2 --out s
sweep focus --reduced --vary rtol=1e-30 --out s
sweep focus --reduced --vary atol=0 --out s
sweep focus --reduced --vary fixed_focus=0.5,2 --out s
sweep focus --reduced --vary learning_rate=0.1,0.2 --out s
sweep focus --reduced --vary momentum=0,2 --descent sgd:0.1 --out s
sweep focus --reduced --vary learning_rate=0.1,-1 --descent sgd --out s
sweep focus --reduced --seeds 0 --out s
sweep focus --reduced --seeds -1 --out s
sweep focus --reduced --seeds 1.5 --out s
sweep focus --reduced --seeds {huge} --out s
sweep focus --reduced --seeds {digits} --out s
sweep focus --reduced --t1 nan --out s
sweep focus --reduced --t1 -1 --out s
sweep focus --reduced --rtol 0 --out s
sweep focus --reduced --rtol 3 --out s
sweep focus --reduced --atol nan --out s
sweep focus --reduced --max-steps 0 --out s
sweep focus --reduced --max-steps {huge} --out s
sweep focus --reduced --outputs -1 --out s
sweep focus --reduced --outputs {huge} --out s
sweep focus --reduced --solver rkc --out s
sweep focus --reduced --observe nothing --out s
sweep focus --reduced --observe "" --out s
sweep focus --reduced --observe alhpa --out s
sweep focus --reduced --descent "" --out s
sweep focus --reduced --descent rmsprop --out s
sweep focus --reduced --descent sgd:x --out s
sweep focus --reduced --descent sgd:-1 --out s
sweep focus --reduced --descent sgd:0.1:1 --out s
sweep focus --reduced --descent adam --out s
sweep focus --reduced --descent adam:0.1:0.9 --out s
sweep focus --reduced --descent sgd:nan --out s
sweep focus --reduced --descent sgd:1e9 --out s
sweep focus --reduced --workers 0 --out s
sweep focus --reduced --workers -1 --out s
sweep focus --reduced --workers {huge} --out s
sweep focus --reduced --scheduler nothing --out s
sweep focus --reduced --workers 2 --scheduler tcp://x:1 --out s
sweep focus --reduced --data {here}/none --out s
sweep focus --reduced --out ""
sweep focus --reduced --out {file}
sweep focus --reduced --out {file}/s
sweep focus --reduced --out {here}
sweep focus --reduced --out {long}
sweep focus --reduced --out {loop}
sweep focus --reduced --out {garbage}
sweep focus --reduced --out nosuch://x/y
sweep focus --reduced --out ~nosuchuser/s
sweep focus --reduced --vary start_mu=5,6 --out {store}
sweep focus --task digits --out s
sweep focus --task cifar10 --t1 1 --out s
sweep ktiw --out s
states
states nowhere.zarr
states {garbage}
states {store}
states {store} --states 0
sweep topic-words --corpus sst9 --out s
"""

SECTIONS = {
    "commands": COMMANDS,
    "systems": SYSTEMS,
    "flags": FLAGS,
    "numbers": NUMBERS,
    "paths": PATHS,
    "sweeps": SWEEPS,
}
